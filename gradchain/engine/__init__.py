"""How a chain runs fast: recorded, lowered, compiled, and run in place. Invisible to the author of a link."""
