"""Measures of mask quality, one module a family.

========== =====================================================================================
module     measures
========== =====================================================================================
boundary   mask IoU, boundary IoU, boundary F and band error of one pair of masks (the primitives)
instance   mask AP, AP50, AP75, AP90, AP of small, medium and large, boundary AP, AF
semantic   mIoU and boundary F, per class
panoptic   PQ, SQ, RQ and boundary PQ, per class
change     what a refinement did to each mask: better, worse, share of the boundary error removed
========== =====================================================================================
"""
