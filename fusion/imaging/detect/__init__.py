"""Boxes around what is seen: Faster R-CNN and RT-DETR, trained, asked, scored.

boxes, roi_align, regions   the parts of Faster R-CNN that can be checked by hand
faster_rcnn, rt_detr        the two heads, on maps of any backbone (pyramid)
detector                    train, ask, save, load
scoring                     average precision and FROC
"""

from fusion.imaging.detect.detector import Box, Detector, DetectorConfig, Picture, train_detector

__all__ = ["Box", "Detector", "DetectorConfig", "Picture", "train_detector"]
