"""Features of three views of plane tokens, without ever making them dense (eqs. 3 to 6)."""
