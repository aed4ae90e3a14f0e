"""Turns a volume into the tensor that the network sees: resampling, lungs, lesion measures.

Also says whether a volume is a whole adult chest (`plausibility`), and makes the golden volume by which sites compare
their preprocessing. May import `imaging` and `system`. Begin with `preprocess`.
"""
