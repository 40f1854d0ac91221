"""How much of what a record encoder says is its trees', learned from patients it has not seen.

One number for each outcome, and trees only speak where patients are many: it is taken as it is found, without
the caution of `fusion.choosing`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fusion import parallel
from fusion.batch import Tokens
from fusion.encoders.linear import rescaled
from fusion.encoders.record import RecordEncoder

SHARES = tuple(eighths / 8 for eighths in range(9))  # that the trees may have
Judge = tuple[RecordEncoder, Tensor]  # an encoder, and places int [N] of patients it was not fitted on


def weigh(
    judges: Sequence[Judge], tokens: Tokens, labels: Tensor, base: Tensor, first: Tensor, said: Tensor
) -> Tensor:
    """Set every judge's share of the trees to the one by which all their patients are told best, by log loss
    after one slope and offset; float32 [R], a half where there are no trees.

    tokens, labels  of all patients; labels float32 [B, R], NaN = unknown
    first, said     evidence out of fold float32 [B, R], before and after what `fit_first` leaves is trained:
                    become what they would have been with that share
    """
    with torch.no_grad():
        prepared = [encoder.prepare(tokens.rows(rows)) for encoder, rows in judges]
        pairs = [encoder.voices(part) for (encoder, _), part in zip(judges, prepared, strict=True)]
        linear, trees = (torch.cat(side) for side in zip(*pairs, strict=True))
        everyone = torch.cat([rows for _, rows in judges])
        share = judges[0][0].trees.share.clone()
        for r in torch.nonzero((linear != trees).any(dim=0)).squeeze(1).tolist():
            known = ~torch.isnan(labels[everyone, r])
            line, bent, target = (
                x[known].double().numpy() for x in (linear[:, r], trees[:, r], labels[everyone, r])
            )
            losses = [rescaled(line + s * (bent - line), target, float(base[r]))[0].mean() for s in SHARES]
            share[r] = SHARES[int(np.argmin(losses))]
        share = parallel.agree(share)
        first[everyone] = linear + share * (trees - linear)
        for (encoder, rows), part in zip(judges, prepared, strict=True):
            encoder.trees.share.copy_(share)
            said[rows] = encoder(part).logits
    return share
