"""DICOM: files and DICOMweb in, headers and Clips out.

web.py       DICOMweb client (QIDO-RS, WADO-RS); stow.py sends (STOW-RS)
outputs.py   results out: SR, Secondary Capture; outlines.py SEG; sources.py what they repeat of their source
capture.py   a heat map burned into its picture
reader.py    the door: read_header, read_clip, pixel_digest
child.py     the process that parses and decodes for us, with a memory limit and a timeout
decoding.py  what runs in that process; it alone imports pydicom, through
dataset.py   (opening, header, digest), selecting.py (which instances, which order), pixels.py
guard.py     size limits, bounded inflation
"""
