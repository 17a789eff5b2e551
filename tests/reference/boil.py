from functools import partial

from tests.reference.plain import maml_loss

SETTINGS = {"inner_lr": 0.3, "inner_steps": 2, "first_order": False, "norm": "batch"}
plain_loss = partial(maml_loss, adapted=("backbone", "norm"))
