"""Public research collections, turned into the FHIR and DICOM a hospital would send."""
