"""A path of six steps, of which one in eight seeds takes each."""

END = 6


def at(seeds):
    """ "the end" where it is reached."""
    step = 0
    for seed in seeds:
        step = taken(step, seed % 8)
    return "the end" if step >= END else ""


def taken(step, digit):
    """The next step, or this one."""
    if step == 0 and digit == 3:
        return 1
    if step == 1 and digit == 1:
        return 2
    if step == 2 and digit == 4:
        return 3
    if step == 3 and digit == 1:
        return 4
    if step == 4 and digit == 5:
        return 5
    if step == 5 and digit == 6:
        return 6
    return step
