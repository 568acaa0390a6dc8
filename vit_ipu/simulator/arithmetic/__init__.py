"""Arithmetic of the simulated IPUs: exact, or with the roundings of an IPU's float16."""
