// The cluster's times and windows (docs/cluster-protocol.md says why these).
#pragma once

#include <chrono>
#include <cstdint>

#include "cluster/transport.h"

namespace millrace {

struct ClusterTiming {
  Duration beat = std::chrono::seconds(1);             // a node says that it is there
  Duration announce_every = std::chrono::seconds(30);  // a node puts its record again
  Duration suspect = std::chrono::seconds(2);          // not heard of for so long: no new streams
  Duration dead = std::chrono::milliseconds(3200);     // … and its streams move
  Duration look = std::chrono::milliseconds(100);      // how often a gateway looks for what is overdue
  Duration place_again = std::chrono::seconds(1);      // a placement without an answer is sent again
  Duration place_give_up = std::chrono::seconds(3);    // … and given up
  Duration credit_every = std::chrono::seconds(1);     // credit is said again
  Duration credit_valid = std::chrono::seconds(5);     // a sequence pauses where there was none for so long
  Duration orphaned = std::chrono::seconds(20);        // … and is cancelled
  Duration resend = std::chrono::milliseconds(300);    // younger frames may still be under way
  Duration stalled = std::chrono::seconds(20);         // an answer that has begun, without a frame: it moves
  Duration first_token = std::chrono::minutes(10);     // the same of one that waits or computes its prompt
  Duration give_up = std::chrono::seconds(120);        // a stream that no node has taken for so long ends with an error
  Duration no_node = std::chrono::seconds(15);         // … sooner, where nobody was there whom it could be given to
  Duration avoid = std::chrono::seconds(10);           // a stream keeps away from a node that has failed it
  int failures = 5;                                    // so does one on which so many nodes died, one after the other
  Duration remember_ended = std::chrono::seconds(60);  // a node remembers what it has ended
  std::uint64_t window = 64;                           // frames that may be under way
};

}  // namespace millrace
