#pragma once

// What is remembered of units that came with a key: the table weir.submitted_key.
//
// The row is written by the transaction that wrote what the unit wrote, so that both are there, or neither,
// after a crash and after a promotion. A lock on role and key, until the end of the transaction, makes a
// second unit of the same key wait for the first one's outcome, where the deadlock detector sees it. Nobody
// but the table's owner may write it: this code takes on the owner's rights for its own three statements.

#include "coalesce/submit_request.hpp"
#include "pg/prelude.hpp"

namespace weir
{

constexpr int kRequestHashSize = 32;
constexpr uint32_t kMaxKeySize = 255;

// Of what must be the same again: text and parameters.
void HashRequest(const Unit &unit, uint8 *hash);

// Of the current user's unit: waits for others with its key, and tells whether its outcome is known. Raises
// if it was another request's. With the outcome the transaction writes something, so that its own commit
// waits for what this session's synchronous_commit asks: the first one may have asked for less.
bool FindOutcome(const Unit &unit, const uint8 *request, int64 *rows);

void RememberOutcome(const Unit &unit, const uint8 *request, int64 rows);

// Forgets up to so many that are older than weir.submit_key_retention. Returns how many; 0 also if somebody
// else is at it.
uint64 ForgetOutcomes(int64 most);

} // namespace weir
