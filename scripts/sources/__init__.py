"""What scripts.demo_data draws, a module each.

PACKAGES are what it needs of requirements-extra.txt, by the names that Python imports. LICENCE is that of its images,
by its name on the Hugging Face Hub, with what to say of it where a model is shared. `items(seed, limit)` are its
pictures, of which NUM_IMAGES distinct ones are drawn, or all; `draw(item, seed, size)` is one of them, RGB;
`describe()` is a function from an item to its labels and its group. SETTINGS are what else the data set depends on.
"""
