"""r"""


def report(results, plot):
    return "x"
