"""From a folder and a number of hours to a recipe: `look` at the data, `plan` a recipe, `train` it within the hours."""
