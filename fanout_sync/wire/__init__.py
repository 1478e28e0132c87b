"""Records as JSON, exactly as the reference writes and reads it: strict JSON, the codec, JSON Lines files."""
