"""Starts trial processes and runs the user's code in them.

Ray is used only for the `ray.tune` functions that users call.
"""
