"""Reads CT images: DICOM, NIfTI and MetaImage files become one checked volume in Hounsfield units.

Contains discovery of files, headers, pixel codecs, geometry of slices and missing slices. May import only
`pipeline.system` and `models`. Begin with `readers`, then `series_reader`.
"""
