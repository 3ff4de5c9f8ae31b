"""The model `viceversa` of lmms-eval, which finds it by the entry point `lmms_eval.models`.

    python -m lmms_eval --model viceversa --model_args pretrained=FOLDER --tasks pope

lmms-eval is no requirement of this package: it is installed beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from viceversa.benchmarks.asking import (
    Answering,
    Asked,
    Crop,
    answering,
    answers,
    loglikelihoods,
    one_question,
    row_budget,
)
from viceversa.config import ConfigError, build

try:
    from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ConfigError(
        f"viceversa.benchmarks.lmms_eval needs lmms-eval ({error}): install it with "
        "pip install lmms-eval==0.7.3"
    ) from error

NAME = "viceversa"


def manifest() -> Any:
    """Return what lmms-eval registers: the model's name and where its class is."""
    from lmms_eval.models.registry_v2 import (  # pyright: ignore[reportMissingImports]
        ModelManifest,
    )

    return ModelManifest(model_id=NAME, chat_class_path=f"{__name__}.{Viceversa.__name__}")


class Viceversa(lmms):
    """A model of this package behind lmms-eval's chat interface.

    Each process holds the whole model, on its own GPU where there is one, and answers its share.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "builtin",
        batch_size: int | str = 8,
        dtype: str | None = None,
        image_size: int = 0,
        crop: str = "center",
        seed: int = 0,
        device: str | None = None,
    ) -> None:
        """Load a model; the arguments are those of --model_args.

        Args:
            pretrained: `builtin`, a folder in Hugging Face layout, a checkpoint, or a hub name.
            batch_size: Questions answered at once (--batch_size).
            dtype: Of the weights; None is `bfloat16` on a GPU, `float32` on a CPU.
            image_size: Side of the pictures in pixels, for a model that can choose; 0 is its own.
            crop: How a picture becomes square: `center`, or `pad` with white bars.
            seed: Decides the answers where a task samples.
            device: None, or the kind that the model is on; which GPU is the process's own.

        Raises ConfigError for an argument that cannot be.
        """
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:  # `auto`, for one
            raise ConfigError(
                f"--batch_size is {batch_size!r}; it takes a whole number, at least 1"
            )
        from accelerate import Accelerator

        from viceversa.models import load_adapter, usual_dtype

        model = {"path": str(pretrained), "dtype": dtype or usual_dtype(), "image_size": image_size}
        config = build({"model": model, "data": {"crop": crop}, "seed": seed})
        self.batch_size, self.seed = int(batch_size), config.seed
        self.crop: Crop = config.data.crop
        self.accelerator = Accelerator()  # joins the processes that the harness was started as
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        self.adapter: Any = load_adapter(config.model)
        self.device, self.rows_at_once = self.adapter.device, row_budget()
        if device and device.split(":")[0] != self.device.type:
            raise ConfigError(
                f"--device is {device!r}, and the model is on {str(self.device)!r}: leave it out, "
                "and choose GPUs with CUDA_VISIBLE_DEVICES"
            )

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer requests of `generate_until`, in their order.

        A request's arguments are those of a chat model, (context, doc_to_messages,
        generation_kwargs, doc_id, task, split), or, where a task is written in Python for simple
        models, (context, generation_kwargs, doc_to_visual, doc_id, task, split). Equal settings are
        answered together, `batch_size` at once. Random numbers follow from the seed, the document
        and its repetition: processes and batches do not change them.
        """
        keys = self._keys([request.args[-3:] for request in requests])
        hows = [answering(_settings(request.args)) for request in requests]
        found = [""] * len(requests)
        for rows, how in self._batches(hows):
            asked = [self._asked(requests[i].args, keys[i]) for i in rows]
            texts = answers(self.adapter, asked, how, self.seed, self.crop, self.rows_at_once)
            for i, text in zip(rows, texts, strict=True):
                found[i] = text
        return found

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return each continuation's log-likelihood, summed, in nats, and whether it is greedy.

        A request's arguments are (context, continuation or doc_to_target, doc_to_visual, doc_id,
        task, split). The context is the question.
        """
        found: list[tuple[float, bool]] = []
        for rows, _ in self._batches([None] * len(requests)):
            asked, told = [], []
            for i in rows:
                _, target, _, doc_id, task, split = requests[i].args
                asked.append(self._asked(requests[i].args))
                document = self.task_dict[task][split][doc_id]
                told.append(target if isinstance(target, str) else target(document))
            found += loglikelihoods(self.adapter, asked, told, self.crop)
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Raise ConfigError: a model that reads one question has no rounds."""
        raise ConfigError(
            f"a task asks in several rounds; {NAME} answers one question: choose another task"
        )

    def clean(self) -> None:
        """Let go of the model, as the harness asks once all is answered."""
        self.adapter = None
        super().clean()

    def _asked(self, args: tuple[Any, ...], key: int = 0) -> Asked:
        """Make the question of a request's arguments. Raises ConfigError for none that fits."""
        context, second, third, doc_id, task, split = args
        place = f"task {task}, document {doc_id}"
        document = self.task_dict[task][split][doc_id]
        if callable(third):  # doc_to_visual
            pictures: Any = third(document)
            content = [{"type": "image", "url": picture} for picture in pictures or ()]
            content.append({"type": "text", "text": context})
            messages = [{"role": "user", "content": content}]
        else:  # second is doc_to_messages, third the settings
            messages = second(document)
        return Asked(place, key, *one_question(messages, place))

    def _keys(self, documents: Sequence[tuple[Any, ...]]) -> list[int]:
        """Number (doc_id, task, split) by name and repetition, the same in every process."""
        times: Counter[tuple[Any, ...]] = Counter()
        keys = []
        for document in documents:
            name = repr((*document, times[document])).encode()
            keys.append(int.from_bytes(blake2b(name, digest_size=8).digest()))
            times[document] += 1
        return keys

    def _batches(self, hows: Sequence[Answering | None]) -> Iterator[tuple[list[int], Any]]:
        """Yield places of equal settings, `batch_size` at once, under a progress bar."""
        from rich.progress import track

        batches = []
        for how in dict.fromkeys(hows):
            rows = [i for i, other in enumerate(hows) if other == how]
            size = self.batch_size
            batches += [(rows[i : i + size], how) for i in range(0, len(rows), size)]
        yield from track(batches, "answering", disable=self.rank != 0)


def _settings(args: tuple[Any, ...]) -> Mapping[str, Any]:
    """Return the generation settings among a request's arguments, which have one of two orders."""
    return args[1] if isinstance(args[1], Mapping) else args[2]
