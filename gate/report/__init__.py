"""What people read: tables of records, comparisons, and progress."""
