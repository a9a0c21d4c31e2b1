"""What the contracts share: callers, time, money, pages, commitments and the approval of terms."""
