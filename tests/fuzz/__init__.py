"""Whatever arrives: FHIR JSON and DICOM bytes, bent and broken by the thousand. See `__main__`."""
