"""The miniature's plot."""


def draw(results, path): ...
