"""Patients: which scans are one's, as the user states it, and items pooled to patients."""

from dagman.tables.patients.pooling import PooledPatients, pool_patients
from dagman.tables.patients.stated import note_assumed, note_patients, state_patients

__all__ = ["PooledPatients", "note_assumed", "note_patients", "pool_patients", "state_patients"]
