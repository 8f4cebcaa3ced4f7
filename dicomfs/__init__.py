"""dicomfs: receive DICOM images, show them as pictures in folders, rendered when somebody looks."""

__version__ = "0.1.0"
