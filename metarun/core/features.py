"""What heads do to features before they compare them."""

from torch import Tensor

from metarun.core.objectives import is_present
from metarun.core.types import Backbone


def find_centre(backbone: Backbone, z: Tensor, y: Tensor) -> Tensor:
    """The mean feature over training tasks where a test uses such averages, elsewhere that of the support.

    z: [n, D], y: [n], the support's -> [D].
    """
    if backbone.centre is not None:
        return backbone.centre
    there = is_present(y).to(z.dtype)
    return there @ z / there.sum()
