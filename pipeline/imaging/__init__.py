"""Reads CT images: DICOM, NIfTI and MetaImage files become one checked volume in Hounsfield units.

Discovery of files, headers, pixel codecs, the geometry of slices, missing slices. May import `pipeline.system` and
`models` alone. Begin with `readers`, then `series_reader`.
"""
