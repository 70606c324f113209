"""Settings of a kind that came after its first release."""

from typing import Any, ClassVar

from pydantic import SerializerFunctionWrapHandler, model_serializer

from ssdistill.settings import Settings


class WithLater(Settings):
    """Settings of which some came later than the kind.

    Hashes of stages depend on the dump: at their defaults, these must not change those of the
    stages that do without them. A class names them in ``later_settings``.
    """

    later_settings: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        unused = {n for n in self.later_settings if getattr(self, n) == fields[n].default}
        return {name: value for name, value in dump(self).items() if name not in unused}
