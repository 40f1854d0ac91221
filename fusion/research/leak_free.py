"""Notes of published cases tell the story's end; what is left when its sentences are taken out.

A sentence goes when it names where the patient ended up (intensive care, death, discharge, recovery), what
was done to them (ventilation, tubes, drugs), or how things went on (worse, better, day 12, follow-up). A rule
by words is coarse: it takes harmless sentences too, and what it leaves must still be judged (the study's arm
of the notes alone).
"""

from __future__ import annotations

import re

from fusion.backbones import split_sentences

TELLS = re.compile(
    r"""\b(
    # where the patient was, and how it ended
      icus? | itu | hdu | intensive | critical(ly)? | high[\s-]dependency | resuscitat\w* | reanimat\w*
    | transfer\w* | ward | isolation
    | die[ds]? | dying | deaths? | dead | decease\w* | fatal\w* | passed | mortality | expired | post-?mortem
    | autopsy | surviv\w* | discharg\w* | recover\w* | cured? | outcome | prognosis | succumb\w* | demise
    | sent\shome | alive
    # what was done
    | (re|ex|de)?intubat\w* | extubat\w* | ventilat\w* | endotracheal | tracheal | tracheo?stom\w* | tubes?
    | ett? | ng | catheters? | cannulas? | central\s(venous\s)?line | ecmo | extracorporeal
    | oxygen\s(therapy|support|mask|requirement) | supplement\w* | high[\s-]flow | hfnc | cpap | bi-?pap | niv
    | peep | fio2 | face\s?mask | prone | proning
    | treat\w* | therap\w* | administ\w* | given | received | started | courses?\sof | dose[sd]? | regimen
    | antibiotic\w* | antibiotherapy | antivirals? | steroids? | corticosteroids? | \w*prednisolone
    | dexamethasone | remdesivir | lopinavir\w* | liponavir\w* | ritonavir\w* | oseltamivir | favipiravir
    | darunavir | tocilizumab | \w*chloroquine | interferon | azithromycin | ceftriaxone | meropenem
    | vancomycin | piperacillin\w* | heparin | vasopress\w* | noradrenaline | norepinephrine | sedat\w*
    | surger\w* | operat\w* | dialysis | drain(s|age|ed)?
    # how things went on
    | worse\w* | deteriorat\w* | decompensat\w* | progress\w* | evolution | evolv\w* | improv\w*
    | resol(v\w*|ution) | regress\w* | absor(b\w*|ption) | clear(ed|ing|ance) | subside\w* | stable
    | stabili[sz]\w* | follow(ed)?[\s-]?up | subsequent\w* | later | eventually | finally
    | days?\s([3-9]|\d\d+) | after\s\d+\s(days|weeks|hours) | serial | sequence\w* | shock | arrest | sepsis
    | septic | multi-?organ | respiratory\s(failure|distress) | ards | complicat\w*
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)


def leak_free(note: str) -> str:
    """The note without sentences that name outcome, treatment or later course; "" when none is left."""
    return " ".join(sentence for sentence in split_sentences(note) if not TELLS.search(sentence))
