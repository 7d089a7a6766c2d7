ABOUT = "x"


def new_command(words):
    return 0
