"""What every test runs under: one thread, no network, no telemetry, a cache of its own."""

import os

from hypothesis import settings
from jaxtyping import install_import_hook

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models; two threads only wait for each other
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# where these are set pytest tells how two files differ in full, which takes hours for the bytes of a model
for name in ("CI", "BUILD_NUMBER"):
    os.environ.pop(name, None)


# shapes that stand in signatures are checked at every call of every test
SHAPED = (
    "models.logprobs models.attention objectives.lm tokens.batch generation.samplers methods.lora methods.nf4 methods.head "
    "methods.dora methods.adapters methods.parallel methods.ia3 methods.bitfit methods.weight methods.unipelt methods.soft "
    "methods.fastfood methods.intrinsic tokens.pairs objectives.preference objectives.dpo objectives.ipo objectives.kto "
    "objectives.simpo objectives.orpo objectives.baselines objectives.reward metrics.ranking "
    "models.varlen models.compiled methods.grouped"
)
HOOK = install_import_hook([f"acclimate.{name}" for name in SHAPED.split()], "beartype.beartype")

# the same examples every time: a suite that is green stays green until something changes
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

pytest_plugins = ["tests.runs"]
