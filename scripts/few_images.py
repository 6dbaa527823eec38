"""How many images are enough: what to expect of fewer, as docs/experiments.md measured it under "Few images"."""

import sys

FEW = {  # images of a data set, and what is known of fewer
    500: "no training on so few was measured; expect copies of training images, and too few test images to notice them",
    1500: "500 faces reached a kernel distance of 0.25, 1,500 faces one of 0.09 to 0.11, where 0.02 to 0.03 is "
    "possible; up to 8 % of the samples were near copies",
    5000: "1,500 to 1,800 faces reached a kernel distance of 0.03 to 0.11, 1,500 emoji 0.23 to 0.30, 2,000 "
    "crops of photographs 0.26; 9,000 faces reach 0.04",
}


def warn(number: int) -> None:
    """Print what to expect of a data set of so many images, if they are few."""
    limit = next((limit for limit in FEW if number < limit), None)
    if limit is not None:
        where = "see docs/experiments.md#few-images"
        print(f"warning: {number:,} images, fewer than {limit:,}: {FEW[limit]}; {where}", file=sys.stderr)
