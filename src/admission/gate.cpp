#include "admission/gate.hpp"

#include <new>

#include "pure_only.hpp"

namespace weir
{

namespace
{

uint64_t Word(uint64_t sequence, TicketState state) noexcept
{
    return sequence << 8 | static_cast<uint64_t>(state);
}

uint64_t SequenceOf(uint64_t word) noexcept
{
    return word >> 8;
}

// Settings that others read without the lock while the launcher writes them. C++17 has no atomic_ref.
template <typename T> T LoadRelaxed(const T &from) noexcept
{
    return __atomic_load_n(&from, __ATOMIC_RELAXED);
}

template <typename T> void StoreRelaxed(T *to, T value) noexcept
{
    __atomic_store_n(to, value, __ATOMIC_RELAXED);
}

// Its last byte is never anything but NUL, so that a reader who comes in the middle finds an end.
void CopyName(char *to, const char *from) noexcept
{
    bool ended = false;
    for (size_t i = 0; i < kClassNameSize - 1; i++) {
        ended = ended || from[i] == '\0';
        StoreRelaxed(&to[i], ended ? '\0' : from[i]);
    }
}

bool SameName(const char *shared_name, const char *name) noexcept
{
    for (size_t i = 0; i < kClassNameSize; i++) {
        const char c = LoadRelaxed(shared_name[i]);
        if (c != name[i])
            return false;
        if (c == '\0')
            return true;
    }
    return true;
}

void ApplySpec(GateClass *c, const ClassSpec &spec) noexcept
{
    StoreRelaxed(&c->weight, spec.weight);
    StoreRelaxed(&c->reserved, spec.reserved);
    StoreRelaxed(&c->max_active, spec.max_active);
    StoreRelaxed(&c->queue_size, spec.queue_size);
    c->queue_timeout_ms.store(spec.queue_timeout_set ? static_cast<int32_t>(spec.queue_timeout_ms) : -1,
                              std::memory_order_relaxed);
    c->pace.Set(spec.startup_rate, spec.startup_burst);
}

// What a class without settings is like: the default class, and one that was removed while in use.
void ApplyDefaults(GateClass *c) noexcept
{
    StoreRelaxed(&c->weight, 1u);
    StoreRelaxed(&c->reserved, 0u);
    StoreRelaxed(&c->max_active, 0u);
    StoreRelaxed(&c->queue_size, 0u);
    c->queue_timeout_ms.store(-1, std::memory_order_relaxed);
    c->pace.Set(0, 0);
}

void ForgetStatistics(GateClass *c) noexcept
{
    c->admitted_base.store(Gate::ClassAdmitted(*c), std::memory_order_relaxed);
    c->queued.store(0, std::memory_order_relaxed);
    c->bypassed.store(0, std::memory_order_relaxed);
    c->over.store(0, std::memory_order_relaxed);
    c->lendings.store(0, std::memory_order_relaxed);
    for (std::atomic<uint64_t> &departure : c->departures)
        departure.store(0, std::memory_order_relaxed);
    c->waits.Reset();
}

bool UnderReserve(const GateClass &c) noexcept
{
    return Gate::ClassActive(c) < c.reserved;
}

} // namespace

// ---- rates ----------------------------------------------------------------------------------------

double Pace::PerSecond() const noexcept
{
    const int64_t interval = interval_ns.load(std::memory_order_relaxed);
    return interval == 0 ? 0 : 1e9 / static_cast<double>(interval);
}

// A tenth of a second's worth unless said otherwise.
void Pace::Set(double per_second, uint32_t burst) noexcept
{
    const auto interval = per_second > 0 ? static_cast<int64_t>(1e9 / per_second) : 0;
    const double early = burst > 0 ? burst - 1.0 : per_second / 10;
    const auto slack = static_cast<int64_t>(early * static_cast<double>(interval));
    slack_ns.store(slack > kLeastSlackNs ? slack : kLeastSlackNs, std::memory_order_relaxed);
    interval_ns.store(interval, std::memory_order_relaxed);
}

// A clock that was set back by more than one interval and the slack does not lock the door until it has
// caught up.
bool Pace::IsDue(int64_t now_us) const noexcept
{
    const int64_t interval = interval_ns.load(std::memory_order_relaxed);
    const int64_t slack = slack_ns.load(std::memory_order_relaxed);
    const int64_t spare = slack - kLeastSlackNs;
    const int64_t bunch = open ? 0 : spare < kMostBunchNs ? spare : kMostBunchNs;
    const int64_t now_ns = now_us * 1000;
    return interval == 0 || now_ns + slack - bunch >= due_ns || due_ns - now_ns > slack + 2 * interval;
}

void Pace::Charge(int64_t now_us) noexcept
{
    const int64_t interval = interval_ns.load(std::memory_order_relaxed);
    const int64_t slack = slack_ns.load(std::memory_order_relaxed);
    const int64_t now_ns = now_us * 1000;
    if (interval == 0)
        return;
    const bool stale = due_ns < now_ns || due_ns - now_ns > slack + 2 * interval;
    due_ns = (stale ? now_ns : due_ns) + interval;
    open = now_ns + slack >= due_ns;
}

void Gate::Init(GateShared *shared, Ticket *tickets, uint32_t count) noexcept
{
    Attach(new (shared) GateShared(), new (tickets) Ticket[count](), count);
    shared_->limit.store(kUnlimited);
    for (GateClass &c : shared_->classes) {
        c.head = kNoTicket;
        c.tail = kNoTicket;
        ApplyDefaults(&c);
    }
    CopyName(shared_->classes[kDefaultClass].name, kDefaultClassName);
    shared_->classes[kDefaultClass].in_use.store(1);
    for (uint32_t id = 0; id < count; id++) {
        tickets_[id].next = kNoTicket;
        tickets_[id].previous = kNoTicket;
    }
}

void Gate::Attach(GateShared *shared, Ticket *tickets, uint32_t count) noexcept
{
    shared_ = shared;
    tickets_ = tickets;
    ticket_count_ = count;
}

// ---- the fast path ------------------------------------------------------------------------------

void Gate::Hold(uint32_t id, uint32_t class_id, int64_t now_us) noexcept
{
    Ticket &t = tickets_[id];
    group(class_id).flow.fetch_add(kAdmission, std::memory_order_relaxed);
    t.class_id.store(class_id, std::memory_order_relaxed);
    t.since_us.store(now_us, std::memory_order_relaxed);
    t.stalled.store(0, std::memory_order_relaxed);
    CountServed(id);
    t.word.store(Word(SequenceOf(t.word.load(std::memory_order_relaxed)) + 1, TicketState::kHeld),
                 std::memory_order_release);
}

bool Gate::TryAcquire(uint32_t id, uint32_t class_id, int64_t now_us) noexcept
{
    if (shared_->shaped.load(std::memory_order_relaxed) != 0 || shared_->pace.Limits())
        return false;
    const uint32_t limit = shared_->limit.load(std::memory_order_relaxed);
    uint64_t load = shared_->load.load(std::memory_order_relaxed);
    do {
        if (WaitingOf(load) != 0 || ActiveOf(load) >= limit)
            return false;
    } while (!shared_->load.compare_exchange_weak(load, load + 1, std::memory_order_seq_cst,
                                                  std::memory_order_relaxed));
    Hold(id, class_id, now_us);
    return true;
}

bool Gate::AcquireUncontrolled(uint32_t id, uint32_t class_id, int64_t now_us) noexcept
{
    const GateClass &c = group(class_id);
    const uint32_t max_active = LoadRelaxed(c.max_active);
    const bool class_full = max_active != 0 && ClassActive(c) >= max_active;
    const uint64_t before = shared_->load.fetch_add(1, std::memory_order_seq_cst);
    Hold(id, class_id, now_us);
    return class_full || ActiveOf(before) >= shared_->limit.load(std::memory_order_relaxed);
}

bool Gate::Release(uint32_t id) noexcept
{
    Ticket &t = tickets_[id];
    uint64_t word = t.word.load(std::memory_order_relaxed);
    if (StateOf(word) != TicketState::kHeld && StateOf(word) != TicketState::kLent)
        return false;
    // The supervisor may lend it at this very moment: whoever changes the word takes the slot out of the
    // counts.
    word = t.word.exchange(Word(SequenceOf(word), TicketState::kFree), std::memory_order_acq_rel);
    if (StateOf(word) == TicketState::kLent)
        return false;
    group(t.class_id.load(std::memory_order_relaxed)).flow.fetch_sub(1, std::memory_order_relaxed);
    return WaitingOf(shared_->load.fetch_sub(1, std::memory_order_seq_cst)) != 0;
}

bool Gate::Reclaim(uint32_t id) noexcept
{
    Ticket &t = tickets_[id];
    uint64_t word = t.word.load(std::memory_order_relaxed);
    if (StateOf(word) != TicketState::kLent)
        return false;
    // In this order, or NextClass() would take the slot for one of the pool's in between.
    group(t.class_id.load(std::memory_order_relaxed)).flow.fetch_add(1, std::memory_order_relaxed);
    shared_->load.fetch_add(1, std::memory_order_seq_cst);
    t.stalled.store(0, std::memory_order_relaxed);
    t.word.store(Word(SequenceOf(word), TicketState::kHeld), std::memory_order_release);
    return true;
}

bool Gate::Lend(uint32_t id, uint64_t word, bool stalled) noexcept
{
    Ticket &t = tickets_[id];
    if (StateOf(word) != TicketState::kHeld)
        return false;
    // Before the exchange: afterwards the owner may already be in its next transaction, of another class.
    const uint32_t class_id = t.class_id.load(std::memory_order_relaxed);
    if (!t.word.compare_exchange_strong(word, Word(SequenceOf(word), TicketState::kLent),
                                        std::memory_order_acq_rel))
        return false;
    if (stalled)
        t.stalled.store(1, std::memory_order_relaxed);
    group(class_id).lendings.fetch_add(1, std::memory_order_relaxed);
    group(class_id).flow.fetch_sub(1, std::memory_order_relaxed);
    shared_->load.fetch_sub(1, std::memory_order_seq_cst);
    return true;
}

// ---- the queue, under the lock ------------------------------------------------------------------

Admission Gate::Enqueue(uint32_t id, uint32_t class_id, int64_t now_us, WakeList *wake,
                        bool may_wait) noexcept
{
    GateClass &c = group(class_id);
    const uint32_t waiting = c.waiting.load(std::memory_order_relaxed);
    const uint32_t size = shared_->queue_size.load(std::memory_order_relaxed);
    const bool full =
        !may_wait || (c.queue_size != 0 && waiting >= c.queue_size) || (size != 0 && Waiting() >= size);

    Ticket &t = tickets_[id];
    t.class_id.store(class_id, std::memory_order_relaxed);
    t.since_us.store(now_us, std::memory_order_relaxed);
    t.next = kNoTicket;
    t.previous = c.tail;
    if (c.tail == kNoTicket) {
        c.head = id;
        if (c.pass < shared_->virtual_time)
            c.pass = shared_->virtual_time;
    } else
        tickets_[c.tail].next = id;
    c.tail = id;
    c.waiting.store(waiting + 1, std::memory_order_relaxed);
    t.word.store(Word(SequenceOf(t.word.load(std::memory_order_relaxed)) + 1, TicketState::kWaiting),
                 std::memory_order_release);
    shared_->load.fetch_add(kWaiter, std::memory_order_seq_cst);

    Dispatch(now_us, wake);
    if (State(id) == TicketState::kHeld)
        return Admission::kGranted;
    // Only now: others that wait for their class's slots must not turn away one that need not wait.
    if (full) {
        Leave(id);
        return Admission::kFull;
    }
    c.queued.fetch_add(1, std::memory_order_relaxed);
    return Admission::kQueued;
}

void Gate::Unlink(uint32_t id) noexcept
{
    Ticket &t = tickets_[id];
    GateClass &c = group(t.class_id.load(std::memory_order_relaxed));
    if (t.previous == kNoTicket)
        c.head = t.next;
    else
        tickets_[t.previous].next = t.next;
    if (t.next == kNoTicket)
        c.tail = t.previous;
    else
        tickets_[t.next].previous = t.previous;
    t.next = kNoTicket;
    t.previous = kNoTicket;
    c.waiting.store(c.waiting.load(std::memory_order_relaxed) - 1, std::memory_order_relaxed);
}

bool Gate::Leave(uint32_t id) noexcept
{
    Ticket &t = tickets_[id];
    const uint64_t word = t.word.load(std::memory_order_relaxed);
    if (StateOf(word) != TicketState::kWaiting)
        return false;
    Unlink(id);
    shared_->load.fetch_sub(kWaiter, std::memory_order_seq_cst);
    t.word.store(Word(SequenceOf(word), TicketState::kFree), std::memory_order_release);
    return true;
}

void Gate::Grant(uint32_t id) noexcept
{
    Ticket &t = tickets_[id];
    GateClass &c = group(t.class_id.load(std::memory_order_relaxed));
    Unlink(id);
    c.flow.fetch_add(kAdmission, std::memory_order_relaxed);
    shared_->load.fetch_add(1 - kWaiter, std::memory_order_seq_cst);
    t.stalled.store(0, std::memory_order_relaxed);
    CountServed(id);
    // Last: from here on the owner runs.
    t.word.store(Word(SequenceOf(t.word.load(std::memory_order_relaxed)), TicketState::kHeld),
                 std::memory_order_release);
}

bool Gate::GrantOver(uint32_t id) noexcept
{
    if (State(id) != TicketState::kWaiting)
        return false;
    group(tickets_[id].class_id.load(std::memory_order_relaxed)).over.fetch_add(1, std::memory_order_relaxed);
    Grant(id);
    return true;
}

// The pool is what the reserves leave of the limit, and never less than one slot: a class without a reserve
// must not starve. A class under its reserve has room whatever the others do.
//
// The fast path enters `load` first and its class's count a moment later; what lies in between counts as
// pooled. `load` is read first, so what left it since is not missed: whoever leaves it after this sees the
// waiter and dispatches.
uint32_t Gate::NextClass(int64_t now_us) const noexcept
{
    const bool enforcing = shared_->enforcing.load(std::memory_order_relaxed) != 0;
    const uint32_t active = ActiveOf(shared_->load.load(std::memory_order_seq_cst));
    uint32_t counted = 0;
    uint32_t pooled = 0;
    uint32_t reserved = 0;
    for (const GateClass &c : shared_->classes) {
        const uint32_t class_active = ClassActive(c);
        counted += class_active;
        pooled += class_active > c.reserved ? class_active - c.reserved : 0;
        reserved += c.reserved;
    }
    if (active > counted)
        pooled += active - counted;
    const uint32_t limit = shared_->limit.load(std::memory_order_relaxed);
    const uint32_t pool = limit > reserved ? limit - reserved : 1;

    uint32_t best = kMaxClasses;
    if (enforcing && !shared_->pace.IsDue(now_us))
        return best;
    for (uint32_t i = 0; i < kMaxClasses; i++) {
        const GateClass &c = shared_->classes[i];
        if (c.head == kNoTicket)
            continue;
        const bool full = (c.max_active != 0 && ClassActive(c) >= c.max_active) || !c.pace.IsDue(now_us);
        if (enforcing && (full || (!UnderReserve(c) && pooled >= pool)))
            continue;
        if (best == kMaxClasses) {
            best = i;
            continue;
        }
        const GateClass &b = shared_->classes[best];
        if (UnderReserve(c) != UnderReserve(b) ? UnderReserve(c) : c.pass < b.pass)
            best = i;
    }
    return best;
}

// A reserved slot is outside the shares: charged for it, the class would run ahead of the others' time
// without end. A class that its own limit held back was behind time, and does not catch up: that would be
// saved-up credit. So virtual time never goes back.
void Gate::Charge(GateClass *c) noexcept
{
    if (UnderReserve(*c))
        return;
    if (c->pass < shared_->virtual_time)
        c->pass = shared_->virtual_time;
    shared_->virtual_time = c->pass;
    c->pass += kStride / c->weight;
}

bool Gate::IsTooSoon(uint32_t class_id, int64_t now_us) noexcept
{
    if (!shared_->pace.IsDue(now_us) || !group(class_id).pace.IsDue(now_us))
        return true;
    shared_->pace.Charge(now_us);
    group(class_id).pace.Charge(now_us);
    return false;
}

void Gate::Dispatch(int64_t now_us, WakeList *wake) noexcept
{
    while (!wake->Full()) {
        const uint32_t class_id = NextClass(now_us);
        if (class_id == kMaxClasses)
            return;
        GateClass &c = group(class_id);
        Charge(&c);
        c.pace.Charge(now_us);
        shared_->pace.Charge(now_us);
        const uint32_t id = c.head;
        Grant(id);
        wake->tickets[wake->count++] = id;
    }
}

void Gate::PositionsOf(uint32_t class_id, uint32_t *positions) const noexcept
{
    uint32_t position = 0;
    for (uint32_t at = shared_->classes[class_id].head; at != kNoTicket && position < ticket_count_;
         at = tickets_[at].next)
        positions[at] = position++;
}

// ---- classes ------------------------------------------------------------------------------------

uint32_t Gate::FindClass(const char *name) const noexcept
{
    for (uint32_t i = 0; i < kMaxClasses; i++) {
        const GateClass &c = shared_->classes[i];
        if (c.in_use.load(std::memory_order_acquire) != 0 && SameName(c.name, name))
            return i;
    }
    return kMaxClasses;
}

uint32_t Gate::FindClassOrDefault(const char *name) const noexcept
{
    const uint32_t found = name == nullptr ? kMaxClasses : FindClass(name);
    return found == kMaxClasses ? kDefaultClass : found;
}

bool Gate::ClassIdle(const GateClass &c) const noexcept
{
    return c.head == kNoTicket && ClassActive(c) == 0;
}

// For a class that is not in use: its old entry, where its last transactions may still be, or an idle one.
uint32_t Gate::TakeClassEntry(const char *name) noexcept
{
    for (uint32_t i = kDefaultClass + 1; i < kMaxClasses; i++) {
        if (group(i).in_use.load(std::memory_order_relaxed) == 0 && SameName(group(i).name, name))
            return i;
    }
    for (uint32_t i = kDefaultClass + 1; i < kMaxClasses; i++) {
        GateClass &c = group(i);
        if (c.in_use.load(std::memory_order_relaxed) != 0 || !ClassIdle(c))
            continue;
        CopyName(c.name, name);
        ForgetStatistics(&c);
        return i;
    }
    return kMaxClasses;
}

uint32_t Gate::Configure(const ClassSpecs &specs) noexcept
{
    bool listed[kMaxClasses] = {};
    uint32_t left_out = 0;

    listed[kDefaultClass] = true;
    ApplyDefaults(&group(kDefaultClass));
    for (uint32_t i = 0; i < specs.count; i++) {
        const uint32_t found = FindClass(specs.specs[i].name);
        if (found != kMaxClasses)
            listed[found] = true;
    }
    // First make room, then fill it.
    for (uint32_t i = 0; i < kMaxClasses; i++) {
        if (listed[i])
            continue;
        group(i).in_use.store(0, std::memory_order_relaxed);
        ApplyDefaults(&group(i));
    }
    bool shaped = false;
    for (uint32_t i = 0; i < specs.count; i++) {
        const ClassSpec &spec = specs.specs[i];
        uint32_t at = FindClass(spec.name);
        if (at == kMaxClasses) {
            at = TakeClassEntry(spec.name);
            if (at == kMaxClasses) {
                left_out++;
                continue;
            }
        }
        ApplySpec(&group(at), spec);
        group(at).in_use.store(1, std::memory_order_release);
        shaped = shaped || spec.max_active != 0 || spec.reserved != 0 || spec.startup_rate != 0;
    }
    shared_->shaped.store(shaped ? 1 : 0, std::memory_order_relaxed);
    return left_out;
}

int32_t Gate::QueueTimeoutMs(uint32_t class_id) const noexcept
{
    const int32_t own = shared_->classes[class_id].queue_timeout_ms.load(std::memory_order_relaxed);
    return own >= 0 ? own : shared_->queue_timeout_ms.load(std::memory_order_relaxed);
}

void Gate::ResetStatistics() noexcept
{
    for (GateClass &c : shared_->classes)
        ForgetStatistics(&c);
}

} // namespace weir
