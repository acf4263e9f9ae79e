"""Judgements out of a store and into one, in our own form and in those that other programs read.

    judged = read_round(store, round_id, Pseudonyms(read_salt(salt_beside(location, run_folder))))
    write(export(judged, "trl"), Path("preferences.jsonl"))

    for judged in read_file(Path("annotations.json")).rounds:
        add_round(store, judged)

``judged`` is a round without a store's ids; ``projection`` makes pairs and labels of it and ``rules`` counts what that
leaves out; ``full``, ``training``, ``argilla`` and ``label_studio`` are the formats; ``export`` writes and ``reading``
reads them; ``into_store`` adds to a store what was not there.

What comes back when an export is imported (yes, no, or what becomes of it):

======================== ==== ======== ============ ============ ======== ============ ======== ======== ========
..                       full argilla  argilla-flat label-studio trl      trl-implicit openai   hh       kto
======================== ==== ======== ============ ============ ======== ============ ======== ======== ========
better response          yes  yes      yes          yes          yes      yes          yes      yes      yes
several turns            yes  yes      yes          yes          yes      yes          yes      yes      yes
system message           yes  yes      yes          yes          yes      yes          yes      no       yes
white space at ends      yes  yes      yes          yes          yes      yes          yes      no       yes
right-to-left text       yes  yes      yes          yes          yes      yes          yes      yes      yes
NUL, half surrogates     yes  no       no           no           no       no           no       no       no
tie                      yes  yes      yes          yes          no       no           no       no       yes
none is good             yes  yes      yes          yes          no       no           no       no       yes
skip                     yes  no       yes          yes          no       no           no       no       no
ranking with ties        yes  yes      yes          yes          no       no           no       no       no
strength                 yes  yes      yes          yes          no       no           no       no       no
margin                   yes  no       no           yes          yes      yes          no       no       no
probability              yes  no       no           yes          yes      yes          no       no       no
rules                    yes  yes      yes          yes          no       no           no       no       no
ratings                  yes  yes      yes          yes          no       no           no       no       no
correction               yes  yes      yes          yes          no       no           no       no       no
comment                  yes  yes      yes          yes          no       no           no       no       no
flags                    yes  yes      yes          yes          no       no           no       no       no
judges told apart        yes  yes      yes          yes          no       no           no       no       no
same pseudonyms          yes  yes      yes          no           no       no           no       no       no
adjudication             yes  no       no           yes          no       no           no       no       no
known answer (gold)      yes  no       no           no           no       no           no       no       no
repeat, training         yes  no       no           no           no       no           no       no       no
revisions                yes  no       no           no           no       no           no       no       no
order shown              yes  no       no           no           no       no           no       no       no
time spent               yes  no       no           yes          no       no           no       no       no
time received            yes  no       no           yes          no       no           no       no       no
sampler, metadata        yes  yes      yes          yes          no       no           no       no       no
task without judgement   no   yes      yes          yes          no       no           no       no       no
======================== ==== ======== ============ ============ ======== ============ ======== ======== ========

The formats for training hold decisions, not judgements: a ranking comes back as the pairs that it decided (of KTO's
rows: as the good before the bad), a correction as a pair with the original, several judges as one with their share of
the votes. A test holds every cell of this table to what happens.
"""

from rlhf_pipeline.exchange.export import EXPORT_FORMATS, Export, ExportFormat, export, find_format, write
from rlhf_pipeline.exchange.into_store import Added, add_round
from rlhf_pipeline.exchange.judged import JudgedRound, JudgedTask, Verdict, read_round
from rlhf_pipeline.exchange.pseudonyms import Pseudonyms, read_salt, salt_beside
from rlhf_pipeline.exchange.reading import IMPORT_FORMATS, ReadFile, read_file
from rlhf_pipeline.exchange.rules import Terms

__all__ = [
    "EXPORT_FORMATS",
    "IMPORT_FORMATS",
    "Added",
    "Export",
    "ExportFormat",
    "JudgedRound",
    "JudgedTask",
    "Pseudonyms",
    "ReadFile",
    "Terms",
    "Verdict",
    "add_round",
    "export",
    "find_format",
    "read_file",
    "read_round",
    "read_salt",
    "salt_beside",
    "write",
]
