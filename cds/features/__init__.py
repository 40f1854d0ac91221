"""The meeting room: rows of patients and studies, as of a moment → `fusion.PatientInputs`.

Where `ehr` and `fusion` meet, and the one way into a model: training and scoring both call
`building.build_inputs`. Nothing whose `available_at` is later than `as_of`, or unknown, gets in (INTEROP 34).
What is missing stays missing. Pixels and notes are read through their stored embeddings.
"""
