"""Hook calls under load, beside a bare Django view and beside another CDS Hooks service."""
