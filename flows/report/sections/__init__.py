"""The values of each section of the page: what the template needs, and nothing of how it was read or how it looks.

Each function that a module here is for takes the round and gives a mapping, or None where the stage has not run.
"""
