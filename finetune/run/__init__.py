"""From a recipe to a finished run and its folder."""
