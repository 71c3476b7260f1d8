//! raw, in Zig: the BLAKE3 digest of the request's body, as b3sum prints it.

const std = @import("std");

pub fn main(init: std.process.Init) !void {
    var in_buffer: [16 * 1024]u8 = undefined;
    var stdin = std.Io.File.stdin().reader(init.io, &in_buffer);
    var hasher = std.crypto.hash.Blake3.init(.{});
    var chunk: [16 * 1024]u8 = undefined;
    while (true) {
        const length = try stdin.interface.readSliceShort(&chunk);
        hasher.update(chunk[0..length]);
        if (length < chunk.len) break;
    }
    var digest: [32]u8 = undefined;
    hasher.final(&digest);

    var out_buffer: [256]u8 = undefined;
    var stdout = std.Io.File.stdout().writer(init.io, &out_buffer);
    try stdout.interface.print("{x}  {s}\n", .{ &digest, init.environ_map.get("name") orelse "-" });
    try stdout.interface.flush();
}
