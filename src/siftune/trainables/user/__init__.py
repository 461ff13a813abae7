"""Trainables that users bring: a function in a file, or a script with flags."""
