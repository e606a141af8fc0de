#include "replicas/sender_silence.hpp"

#include "pure_only.hpp"

namespace weir
{

namespace
{

constexpr uint32_t kBeatsHeard = 3; // in a row: it beats

} // namespace

void SenderSilence::Note(int32_t receiver_pid, uint64_t end, int64_t sent, int64_t received, int64_t bound_us,
                         int64_t now_us) noexcept
{
    if (receiver_pid != receiver) {
        receiver = receiver_pid;
        connected_us = now_us;
        beats = 0;
        heard = beatless = false;
    }
    // A walreceiver that just began has put its own time into both.
    if (receiver == 0 || sent == received || sent == sent_us)
        return;
    const bool in_time = heard && received - heard_us <= bound_us;
    const bool news = end != end_lsn;
    if (heard && !in_time)
        beats = 0;
    if (heard && !in_time && !news)
        beatless = true;
    if (in_time && news && beats < kBeatsHeard)
        beats++;
    heard = true;
    heard_us = received;
    sent_us = sent;
    end_lsn = end;
}

bool SenderSilence::IsDeaf(int64_t bound_us, int64_t now_us) const noexcept
{
    return receiver == 0 || (!heard && now_us - connected_us <= bound_us);
}

int64_t SenderSilence::LagUs(int64_t bound_us, int64_t now_us) const noexcept
{
    const int64_t silence = now_us - heard_us;
    if (heard_us == 0 || silence <= 0)
        return 0;
    if (IsDeaf(bound_us, now_us))
        return silence;
    return heard && beats >= kBeatsHeard && !beatless && silence > bound_us ? silence : 0;
}

void SenderSilence::Shift(int64_t step_us) noexcept
{
    if (heard_us != 0)
        heard_us += step_us;
    connected_us += step_us;
}

} // namespace weir
