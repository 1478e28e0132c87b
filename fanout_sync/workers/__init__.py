"""Worker processes: each lane has one loky process and one private socket pair, and shares nothing."""
