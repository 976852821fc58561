"""Assigns scans to patients, as stated by the user, and pools items by patient."""

from dagman.tables.patients.pooling import PooledPatients, pool_patients
from dagman.tables.patients.stated import note_assumed, note_patients, state_patients

__all__ = ["PooledPatients", "note_assumed", "note_patients", "pool_patients", "state_patients"]
