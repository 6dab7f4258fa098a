"""Settings of a layer by name, as docs/options.md lists them, and values as text, as moekit/option.h reads them."""
import types

from . import _c


def as_text(value):
    """A setting as option.h reads it: from any source, and so in text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(map(as_text, value))
    return "" if value is None else str(value)


def _strings(pointer):
    names = []
    while pointer[len(names)]:
        names.append(pointer[len(names)].decode())
    return names


def presets():
    """Names for Layer(preset=...)."""
    return _strings(_c.library().moe_layer_presets())


def formats():
    """Names for Layer.quantize."""
    return _strings(_c.library().moe_packed_formats())


def option_rows():
    library, index = _c.library(), 0
    while row := library.moe_layer_option_at(index):
        yield row[0]
        index += 1


def options():
    """Every setting of a layer, as in docs/options.md: name -> its default, choices, aliases in other systems, help."""
    return {row.key.decode().removeprefix("moe."): types.SimpleNamespace(
        default=row.initial.decode(), choices=_strings(row.choices) if row.choices else None,
        aliases=row.aliases.decode().split(), help=row.help.decode()) for row in option_rows()}


def setting(name):
    """The key of a keyword, by whatever name; itself, where it has a meaning of its own."""
    row = _c.library().moe_layer_option_find(name.encode())
    return row[0].key.decode() if row else name


def refuse_twins(keywords):
    """One setting said twice, by its name and by another system's."""
    said = {}
    for name in keywords:
        if (other := said.setdefault(setting(name), name)) != name:
            raise TypeError(f"{other}, {name}: two names of one setting; say it once")
