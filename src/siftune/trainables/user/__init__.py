"""The user's own trainables: a function in a file, or a script with flags."""
