"""What somebody can do about a file that is refused: said after the reason, to those who keep or send it."""

from __future__ import annotations

AGAIN = "send it again; if it comes the same, it is damaged where it is kept"
EXPORT = "export it as a DICOM file (PS3.10), or leave it out"
REPAIR = "have the system that made it, or its archive, put that right"
OTHER_SYNTAX = "have the archive send it in another, such as Explicit VR Little Endian"
SMALLER = "send fewer frames an instance or smaller ones, or leave it out"
