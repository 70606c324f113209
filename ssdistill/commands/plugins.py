"""The option ``--import`` of every command."""

from ssdistill.errors import UserError


def without_imports(words: list[str]) -> list[str]:
    """Import the packages that ``--import`` names, before any of their kinds is looked for.

    Raises:
        UserError: one cannot be imported, or no name follows.
    """
    rest = []
    remaining = iter(words)
    for word in remaining:
        option, equals, value = word.partition("=")
        if option != "--import":
            rest.append(word)
            continue
        names = value if equals else next(remaining, "")
        if not names or names.startswith("-"):
            raise UserError("--import: name a package, such as --import my_package")
        from ssdistill.settings.adding import add_plugin

        for name in names.split(","):
            add_plugin(name)
    return rest
