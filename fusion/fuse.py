"""Unimodal logits and masks → one fused logit per outcome, for any subset of modalities.

Laws, held by construction: what an absent modality's place holds cannot matter; the empty subset gives the
base rate. Fusions read out-of-fold *logits* (not embeddings: those of different folds share no axes).

Which modalities are let in may differ from outcome to outcome: `present` is [B, M], or [B, M, R].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusion.config import FusionKind

HIDDEN = 16
HEADS = 2


class Fusion(nn.Module):
    """Evidence [B, M, R] (unimodal minus base logit), present bool [B, M] or [B, M, R] → [B, R], shift of the
    logit.

    A kind whose outcomes see each other (gated, attention) gives `together`, and is asked once
    for each outcome where they hear different modalities. One that adds up each by itself gives `forward`.
    """

    def forward(self, evidence: Tensor, present: Tensor) -> Tensor:
        if present.dim() == 2:
            return self.together(evidence, present)
        outcomes = range(evidence.shape[2])
        return torch.stack([self.together(evidence, present[..., r])[:, r] for r in outcomes], dim=1)

    def together(self, evidence: Tensor, present: Tensor) -> Tensor:
        """The same modalities for all outcomes: present bool [B, M]."""
        raise NotImplementedError(f"{type(self).__name__} gives neither `forward` nor `together`")

    def varied(self, evidence: Tensor, present: Tensor, place: int, said: Tensor) -> Tensor:
        """One patient, [M, R], under every mask, bool [S, M, R], with each evidence of one modality, [U, R],
        in its place → [S, U, R]. Kinds work out once a mask what the others add; this asks about all S x U.
        """
        given = evidence.repeat(len(present), len(said), 1, 1)
        given[:, :, place] = said
        asked = self.forward(given.flatten(0, 1), present.repeat_interleave(len(said), dim=0))
        return asked.view(len(present), len(said), -1)

    def penalty(self) -> Tensor:
        """How far the weights are from what would be believed without data."""
        return torch.stack([p.square().sum() for p in self.parameters()]).sum()


class LateFusion(Fusion):
    """Masked logistic: each present modality adds weight x evidence + offset.

    weight      at least 0; less when modalities that say the same are present too (`redundancy`, per pair),
                so that the weights suit each pattern of present modalities
    offset      what the mere presence of the modality tells (pattern-aware bias)
    """

    START = 0.8  # weight of a lone modality before any data …
    SHARED = 0.1  # … and what each companion takes off it

    def __init__(self, modalities: int, outcomes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((modalities, outcomes), self.START))
        self.offset = nn.Parameter(torch.zeros(modalities, outcomes))
        self.redundancy = nn.Parameter(torch.full((modalities, modalities, outcomes), self.SHARED))

    def forward(self, evidence: Tensor, present: Tensor) -> Tensor:
        present = _each(present, evidence)
        here = present.float()
        pairs = self.redundancy * (1 - torch.eye(len(self.weight)))[..., None]
        weight = (self.weight - torch.einsum("bkr,mkr->bmr", here, pairs)).clamp(min=0)
        parts = weight * _masked(evidence, present) + self.offset * here
        return parts.sum(1)

    def varied(self, evidence: Tensor, present: Tensor, place: int, said: Tensor) -> Tensor:
        """Under one mask, a straight line in what one modality says."""
        ends = torch.stack([_put(evidence, place, x) for x in (0.0, 1.0)]).repeat(len(present), 1, 1)
        told = self.forward(ends, present.repeat_interleave(2, dim=0))
        silent, loud = told.view(-1, 2, 1, said.shape[1]).unbind(1)
        return silent + (loud - silent) * said

    def penalty(self) -> Tensor:
        return (
            (self.weight - self.START).square().sum()
            + 4 * (self.redundancy - self.SHARED).square().sum()
            + 2 * self.offset.square().sum()
        )


class GatedFusion(Fusion):
    """Each present modality is let through by a gate that sees all that is present."""

    def __init__(self, modalities: int, outcomes: int) -> None:
        super().__init__()
        self.context = nn.Linear(modalities * (outcomes + 1), HIDDEN)
        self.gate = nn.Linear(HIDDEN, modalities * outcomes)
        self.offset = nn.Parameter(torch.zeros(modalities, outcomes))
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def together(self, evidence: Tensor, present: Tensor) -> Tensor:
        evidence = _masked(evidence, present[..., None])
        here = present.float()[..., None]
        context = torch.tanh(self.context(torch.cat([evidence, here], dim=2).flatten(1)))
        gates = torch.sigmoid(self.gate(context)).view_as(evidence)
        return ((gates * evidence + self.offset) * here).sum(1)

    def varied(self, evidence: Tensor, present: Tensor, place: int, said: Tensor) -> Tensor:
        """The context before it is bent is a sum: what the others say under each mask, and what it says."""
        modalities, outcomes = self.offset.shape
        to_context = self.context.weight.view(HIDDEN, modalities, outcomes + 1)[:, place, :outcomes]
        to_gate, gate_bias = (
            self.gate.weight.view(modalities, outcomes, -1),
            self.gate.bias.view_as(self.offset),
        )
        shifts = []
        for r in range(outcomes):
            here = present[..., r]
            known = _masked(_put(evidence, place, 0.0), here[..., None])  # [S, M, R]
            context = self.context(torch.cat([known, here.float()[..., None]], dim=2).flatten(1))
            more = (said @ to_context.T) * here[:, place, None, None]
            bent = torch.tanh(context[:, None] + more)  # [S, U, HIDDEN]
            gates = torch.sigmoid(nn.functional.linear(bent, to_gate[:, r], gate_bias[:, r]))
            others = (gates @ known[..., r, None])[..., 0] + (self.offset[:, r] * here).sum(1, keepdim=True)
            shifts.append(others + gates[..., place] * said[:, r] * here[:, [place]])
        return torch.stack(shifts).movedim(0, -1)


class AttentionFusion(Fusion):
    """One token per present modality and a summary token that attends over them."""

    def __init__(self, modalities: int, outcomes: int) -> None:
        super().__init__()
        self.content = nn.Linear(outcomes, HIDDEN)
        self.name = nn.Parameter(0.1 * torch.randn(modalities, HIDDEN))
        self.summary = nn.Parameter(0.1 * torch.randn(1, 1, HIDDEN))
        self.attention = nn.MultiheadAttention(HIDDEN, HEADS, batch_first=True)
        self.head = nn.Linear(HIDDEN, outcomes)
        self.through = nn.Parameter(torch.full((modalities, outcomes), 0.3))

    def together(self, evidence: Tensor, present: Tensor) -> Tensor:
        evidence = _masked(evidence, present[..., None])
        scores, says = self._tokens(self.content(evidence) + self.name)
        own_score, own_says = self._tokens(self.summary)
        scores = scores.masked_fill(~present[..., None], -torch.inf)
        scores = torch.cat([torch.zeros_like(scores[:, :1]) + own_score, scores], dim=1)
        says = torch.cat([torch.zeros_like(says[:, :1]) + own_says, says], dim=1)
        said = (torch.softmax(scores, dim=1)[..., None] * says).sum((1, 2))
        shift: Tensor = said + self._constant() + (self.through * evidence).sum(1)
        return shift * present.any(dim=1, keepdim=True)

    def varied(self, evidence: Tensor, present: Tensor, place: int, said: Tensor) -> Tensor:
        """One more token in a softmax is a gate between what was attended to without it and what it says."""
        evidence = _put(_masked(evidence, present.any(0)), place, 0.0)
        score, says = self._tokens(torch.cat([self.summary[0], self.content(evidence) + self.name]))
        new_score, new_says = self._tokens(self.content(said) + self.name[place])
        constant, shifts = self._constant(), []
        for r in range(said.shape[1]):
            is_in, hidden = present[:, [place], r], ~present[..., r]
            hidden[:, place] = True
            hidden = torch.cat([torch.zeros_like(is_in), hidden], dim=1)
            scores = score.masked_fill(hidden[..., None], -torch.inf)  # [S, 1 + M, heads]
            before = torch.einsum("smh,mh->hs", torch.softmax(scores, dim=1), says[..., r])[..., None]
            louder = new_score.T[:, None] - torch.logsumexp(scores, dim=1).T[..., None]  # [heads, S, U]
            gate = torch.sigmoid(louder) * is_in
            attended = (before + gate * (new_says[..., r].T[:, None] - before)).sum(0)
            direct = (present[..., r] * self.through[:, r] * evidence[:, r]).sum(1, keepdim=True)
            direct = direct + is_in * (self.through[place, r] * said[:, r])
            shifts.append((attended + constant[r] + direct) * present[..., r].any(dim=1, keepdim=True))
        return torch.stack(shifts).movedim(0, -1)

    def _tokens(self, content: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [..., HIDDEN] → each one's score in each head [..., HEADS], the summary asking, and what it
        adds there to each outcome when it is all that is attended to [..., HEADS, R].

        The layers between are linear and the summary asks all patients the same, so they are multiplied out:
        one product instead of keys, values and two projections. (A bias of the keys cancels in the softmax.)
        """
        ask, key, value = self.attention.in_proj_weight.view(3, HEADS, -1, HIDDEN)
        query = ask @ self.summary[0, 0] + self.attention.in_proj_bias[:HIDDEN].view(HEADS, -1)
        to_score = torch.einsum("hd,hdk->hk", query, key) / query.shape[1] ** 0.5
        out = (self.head.weight @ self.attention.out_proj.weight).view(-1, HEADS, query.shape[1])
        to_says = torch.einsum("rhd,hdk->hrk", out, value)
        says = content @ to_says.flatten(0, 1).T
        return content @ to_score.T, says.unflatten(-1, to_says.shape[:2])

    def _constant(self) -> Tensor:
        """What the biases add to each outcome, float32 [R]: weights of a softmax sum to one."""
        out = self.attention.out_proj(self.attention.in_proj_bias[2 * HIDDEN :])
        told: Tensor = self.head(out)
        return told


class StackedFusion(Fusion):
    """A meta-learner with weights and an intercept of its own for every pattern of present modalities.

    A pattern's weights are shared ones plus a deviation that a ridge keeps small: patterns that few patients
    have borrow from all (a hierarchical logistic regression; stacking after Wolpert 1992, a model for each
    pattern after Fletcher Mercaldo and Blume 2020, Biostatistics 21:236).
    Two modalities may also strengthen or weaken each other beyond their sum (`pairs`).
    """

    START = 0.6

    def __init__(self, modalities: int, outcomes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((modalities, outcomes), self.START))
        self.own = nn.Parameter(torch.zeros(2**modalities, modalities, outcomes))
        self.offset = nn.Parameter(torch.zeros(2**modalities, outcomes))
        self.pairs = nn.Parameter(torch.zeros(modalities, modalities, outcomes))
        self.register_buffer("bits", 2 ** torch.arange(modalities), persistent=False)
        self.bits: Tensor

    def forward(self, evidence: Tensor, present: Tensor) -> Tensor:
        present = _each(present, evidence)
        evidence = _masked(evidence, present)
        pattern = (present * self.bits[:, None]).sum(1)  # [B, R]
        outcome = torch.arange(evidence.shape[2]).expand_as(pattern)
        own = self.own.transpose(1, 2)[pattern, outcome].transpose(1, 2)  # [B, M, R]
        strength = torch.tanh(evidence / 2)  # twice the shift of an even chance
        upper = torch.triu(torch.ones_like(self.pairs[..., 0]), diagonal=1)[..., None]
        between = (torch.einsum("bkr,mkr->bmr", strength, self.pairs * upper) * strength).sum(1)
        known = (pattern > 0).float()
        return ((self.weight + own) * evidence).sum(1) + between + self.offset[pattern, outcome] * known

    def varied(self, evidence: Tensor, present: Tensor, place: int, said: Tensor) -> Tensor:
        """Under one mask, a line in what one modality says plus a line in its strength."""
        silent = _put(evidence, place, 0.0)
        pattern = (present * self.bits[:, None]).sum(1)
        outcome = torch.arange(said.shape[1]).expand_as(pattern)
        line = self.weight[place] + self.own[pattern, place, outcome]  # [S, R]
        pairs = torch.triu(self.pairs.movedim(2, 0), diagonal=1)
        pairs = (pairs + pairs.transpose(1, 2))[:, place].T  # [M, R]
        bend = (pairs * torch.tanh(_masked(silent, present) / 2)).sum(1)
        more = line[:, None] * said + bend[:, None] * torch.tanh(said / 2)
        return self.forward(silent.expand_as(present), present)[:, None] + present[:, [place]] * more

    def penalty(self) -> Tensor:
        return (
            (self.weight - self.START).square().sum()
            + 4 * self.own.square().sum()
            + 4 * self.offset.square().sum()
            + 4 * self.pairs.square().sum()
        )


def build_fusion(kind: FusionKind, modalities: int, outcomes: int) -> Fusion:
    """An untrained fusion of that kind."""
    kinds = {
        FusionKind.LATE: LateFusion,
        FusionKind.GATED: GatedFusion,
        FusionKind.ATTENTION: AttentionFusion,
        FusionKind.STACKING: StackedFusion,
    }
    return kinds[kind](modalities, outcomes)


def _masked(evidence: Tensor, present: Tensor) -> Tensor:
    """Zero where absent: `where`, not a product, so that not even a NaN gets through."""
    return torch.where(present, evidence, torch.zeros(()))


def _put(evidence: Tensor, place: int, value: float) -> Tensor:
    """The same evidence [M, R] but for one modality."""
    changed = evidence.clone()
    changed[place] = value
    return changed


def _each(present: Tensor, evidence: Tensor) -> Tensor:
    """bool [B, M, R]: who is let in, for each outcome."""
    return present if present.dim() == 3 else present[..., None].expand_as(evidence)
