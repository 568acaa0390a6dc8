"""How the simulated IPUs compute: exactly, or with the roundings of an IPU's float16."""
