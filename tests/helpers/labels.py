"""A trained run whose base stage knows labels."""

import torch

from utils.runs.checkpoint import fingerprint
from utils.runs.folders import RunFolder


def teach_labels(run, names, table):
    """Let the base stage of a run know labels; a row of the table is a number of images, condition and labels."""
    path, table = RunFolder(run).step("transformer_0").best, torch.tensor(table)
    content = torch.load(path, weights_only=True)
    config, draws = content["config"], torch.Generator().manual_seed(0)
    config |= {"labels": names, "most_labels": table.shape[1] - 2, "label_sets": len(table)}
    vectors = torch.randn(len(names), config["transformer"]["in_dim"], generator=draws)
    for state in filter(None, (content["model"], content.get("ema"))):
        state |= {"label.weight": vectors, "label_sets": table}
    content["fingerprint"] = fingerprint(content.get("ema") or content["model"])
    path.unlink()  # which another name may share
    torch.save(content, path)
    return run
