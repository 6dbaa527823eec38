"""How many images are enough: a warning of what to expect of fewer."""

import sys

FEW = {  # images of a data set, and what to expect of fewer
    500: "expect copies of training images, and too few test images to notice them",
    1500: "expect smeared pictures, and near copies among them",
    5000: "aligned pictures of one kind work, others become textures and outlines",
}


def warn(number: int) -> None:
    limit = next((limit for limit in FEW if number < limit), None)
    if limit is not None:
        where = "see docs/experiments.md#few-images"
        print(f"warning: {number:,} images, fewer than {limit:,}: {FEW[limit]}; {where}", file=sys.stderr)
