"""Worker processes: one loky process and one private socket pair a lane, nothing shared between lanes."""
