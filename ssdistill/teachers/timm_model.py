"""Teachers from timm's model collection."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import timm
from timm.models import PretrainedCfg
from torch import nn

from ssdistill.errors import UserError
from ssdistill.models.allowed_args import BuildingArgs, loading_argument, refused_argument
from ssdistill.models.backbones import Encoder, EncoderSpec, encoder_around
from ssdistill.models.downloads import downloading
from ssdistill.models.spec import Channels
from ssdistill.models.timm_net import building_args, check_timm_name
from ssdistill.models.trial import check_arguments, reason_of
from ssdistill.settings import Size, as_size, as_written
from ssdistill.teachers import ImageSpec, Teacher
from ssdistill.teachers.channels import channel_notices, check_channels, conv_channels
from ssdistill.teachers.formats.reading import sha256_of
from ssdistill.teachers.sizes import fit_size, size_inside, size_notices
from ssdistill.teachers.weights import check_keys, finite_notices, read_state, weights_file, why

HUB = "hf-hub:"
LOCAL = {"file", "url", "state_dict"}
"""Keys ignored in a hub description: other locations of its weights."""
REMEDY = "set teacher.weights=FILE to load them from a file"


class TimmModel(Teacher):
    """A network of timm at published weights, its classifier removed.

    The embedding is what timm gives to the classifier (pooled, after the final norm); of CLIP
    that is the image tower's before its projection. OpenAI trained CLIP with QuickGELU, which
    only names with ``clip_quickgelu`` have.

    Args:
        name: any timm model, with the tag of its weights (``vit_base_patch16_224.mae``) or
            without, which takes timm's default tag; or ``hf-hub:owner/model``.
        args: further keyword arguments of ``timm.create_model``, none that say what is loaded.
        weights: a safetensors or PyTorch file, in timm's own format or in one of the authors'
            that timm converts (DINOv2, DINOv3, CLIP, MAE, …); null downloads timm's.
        input_size: side, in pixels, or ``[height, width]`` to which images are resized inside.
            Null is the size of the weights where images are smaller or the architecture has a
            fixed size. Position embeddings are resampled to another one: 224 instead of the 518
            of DINOv2.
    """

    kind = "timm"

    def __init__(
        self,
        *,
        name: str,
        args: BuildingArgs = {},  # noqa: B006  never changed
        weights: str | None = None,
        input_size: Size | None = None,
    ):
        if argument := loading_argument(args):
            raise UserError(
                f"teacher.args.{argument} selects which weights to load; {REMEDY}, or "
                "append the tag of timm's weights to teacher.name"
            )
        self.name, self.args = name, args
        self.weights, self.input_size = weights, input_size

    def identity(self) -> dict[str, Any]:
        if self.weights is not None:
            return {"sha256": sha256_of(weights_file(self.weights))}
        if self.name.startswith(HUB):
            return {"hub": self.name.removeprefix(HUB)}
        config = self._registered()
        return {"hub": config.hf_hub_id, "url": config.url, "tag": config.tag}

    def load(self, image_spec: ImageSpec) -> tuple[Encoder, list[str]]:
        check_arguments(self.args, "teacher.args", len(image_spec.mean))
        path = None if self.weights is None else weights_file(self.weights)
        name, config, args, source = self._resolve()
        spec, native = self._spec(name, config, args, image_spec)
        # Versions of timm differ in whether they would unpickle a file; this does not.
        found = None if path is None else conv_channels(config.first_conv, read_state(path))
        try:
            net = self._create(spec, config, source, path)
        except UserError:
            if found is not None and found != config.input_size[0]:
                check_channels(found, image_spec, str(path), "teacher.weights")
            raise
        encoder = encoder_around(spec, net).eval()
        fit_size(encoder, native)
        # A first layer in a file that already takes the images is loaded as it is.
        trained = spec.in_chans if found == spec.in_chans else config.input_size[0]
        notices = [*finite_notices(encoder), *channel_notices(encoder, trained)]
        return encoder, [*notices, *size_notices(encoder)]

    def _registered(self) -> PretrainedCfg:
        if ":" in self.name or "/" in self.name:
            raise UserError(
                f"teacher.name: '{self.name}' is neither a timm model nor {HUB}owner/model; "
                "correct the name"
            )
        try:
            check_timm_name(self.name)
        except UserError as error:
            raise UserError(f"teacher.name: {error}") from None
        config = timm.get_pretrained_cfg(self.name) or PretrainedCfg()
        if self.weights is None and not config.has_weights:
            raise UserError(
                f"teacher.name: timm has no pretrained weights for '{self.name}'; {REMEDY}"
            )
        return config

    def _resolve(self) -> tuple[str, PretrainedCfg, dict[str, Any], dict[str, Any]]:
        """Return the architecture, what its weights need, its arguments, and what timm needs."""
        if not self.name.startswith(HUB):
            return self.name, self._registered(), dict(self.args), {}
        what = f"teacher.name: the description of '{self.name}'"
        with downloading(what, "connect to the internet to fetch it", hub=True):
            pretrained_cfg, name, args = timm.models.load_model_config_from_hf(
                self.name.removeprefix(HUB)
            )
        try:
            check_timm_name(name)
            config = PretrainedCfg(**pretrained_cfg)
        except (UserError, TypeError) as error:
            raise UserError(f"teacher.name: '{self.name}' is not a timm model: {error}") from error
        if refused := refused_argument(name, "timm", args or {}):
            raise UserError(
                f"teacher.name: refused to build '{self.name}' (model_args.{refused}); "
                "choose another model"
            )
        pretrained_cfg = {key: value for key, value in pretrained_cfg.items() if key not in LOCAL}
        # How many channels is the images' to say; timm adapts the first layer from its own number.
        args = {key: value for key, value in (args or {}).items() if key != "in_chans"} | self.args
        return name, config, args, {"pretrained_cfg": pretrained_cfg}

    def _spec(
        self, name: str, config: PretrainedCfg, args: dict[str, Any], image_spec: ImageSpec
    ) -> tuple[EncoderSpec, Size]:
        own = args.get("img_size") or config.input_size[-1]
        native = own if isinstance(own, int) else as_size(own[0], own[-1])
        if "img_size" in args and self.input_size not in (None, native):
            raise UserError(
                f"teacher.input_size={as_written(self.input_size)} and "
                f"teacher.args.img_size={as_written(native)} "
                "disagree: set only one of them"
            )
        fixed = config.fixed_input_size and not args.get("dynamic_img_size")
        size = size_inside(self.input_size, native, image_spec.image_size, fixed)
        if config.fixed_input_size and size is not None:
            args["img_size"] = size if isinstance(size, int) else list(size)
        # timm leaves the number of channels of its statistics open.
        mean, std = cast("Channels", tuple(config.mean)), cast("Channels", tuple(config.std))
        if len(image_spec.mean) != len(mean):
            mean, std = image_spec.mean, image_spec.std
        spec = EncoderSpec(
            name=name,
            args=args,
            image_size=image_spec.image_size,
            input_size=size,
            mean=mean,
            std=std,
        )
        return spec, native

    def _create(
        self, spec: EncoderSpec, config: PretrainedCfg, source: dict[str, Any], path: Path | None
    ) -> nn.Module:
        if path is not None:
            # Another number of classes makes timm drop the classifier of the file.
            overlay = {"file": str(path), "source": None, "num_classes": -1}
            source = {**source, "pretrained_cfg_overlay": overlay}
        what = f"teacher.name: weights of '{self.name}'"
        try:
            with downloading(what, REMEDY, hub=path is None), _watch_loading() as results:
                net = timm.create_model(
                    spec.name, pretrained=True, num_classes=0, **source, **building_args(spec)
                )
        except TypeError as error:
            raise UserError(f"teacher.args of '{self.name}': {reason_of(error)}") from error
        except UserError:
            raise
        except Exception as error:  # timm's converters raise whatever they stumble upon
            where = what if path is None else f"teacher.weights: {path}"
            raise UserError(
                f"{where} cannot be loaded into '{spec.name}' ({why(error)}); correct teacher.name"
            ) from error
        if path is not None:
            self._check(results, config, path)
        return net

    def _check(self, results: list[Any], config: PretrainedCfg, path: Path) -> None:
        names = config.classifier or ()
        names = (names,) if isinstance(names, str) else names
        heads = tuple(f"{name}." for name in names)
        for result in results:
            unknown = [key for key in result.unexpected_keys if not key.startswith(heads)]
            check_keys(self.name, f"teacher.weights: {path}", result.missing_keys, unknown)


@contextmanager
def _watch_loading() -> Iterator[list[Any]]:
    """Give what ``load_state_dict`` returns in the context.

    timm logs the keys that did not match, all of them, and gives no other way to learn of them.
    """
    results: list[Any] = []
    plain = nn.Module.load_state_dict
    logger = logging.getLogger("timm")
    level = logger.level

    def watched(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = plain(module, *args, **kwargs)
        results.append(result)
        return result

    cast("Any", nn.Module).load_state_dict = watched
    logger.setLevel(logging.ERROR)
    try:
        yield results
    finally:
        logger.setLevel(level)
        nn.Module.load_state_dict = plain
